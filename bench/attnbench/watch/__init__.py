"""Watching: what keeps a timed figure honest, between the timed calls and never inside them."""
