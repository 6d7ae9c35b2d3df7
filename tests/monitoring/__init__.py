"""Metrics, health, traces, and what watches them."""
