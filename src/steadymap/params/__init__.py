"""Params: schema, checks, declared methods, plugins."""
