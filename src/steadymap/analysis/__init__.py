"""Tables of results from scores: sweeps, parameter randomization, budgets, claims."""
