"""Which maps a study needs, and how they are computed."""
