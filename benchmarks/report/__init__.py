"""Reports of a run: a table on the terminal, JSON, Markdown, and a page with plots."""
