"""Tests: of pure code by examples and Hypothesis, of everything else on real files and servers."""
