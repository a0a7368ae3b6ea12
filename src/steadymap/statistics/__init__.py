"""Statistics under all tables: resampling, intervals, correlation."""
