"""Examples that run: each is a program of its own, and the tests run them."""
