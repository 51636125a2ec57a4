"""The layer level: attention with its projections and what tells it where a token stands."""
