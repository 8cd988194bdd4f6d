"""Facades with the names that clients import; nothing of the toolkit imports them."""
