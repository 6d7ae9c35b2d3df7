"""Records that anyone can write: none of them ends, stalls or blinds whoever reads them."""
