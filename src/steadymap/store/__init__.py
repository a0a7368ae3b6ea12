"""Files: atomic writes, tables, maps, the task cache, code fingerprints."""
