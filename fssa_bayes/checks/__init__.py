"""Can the posterior be believed? Simulated people, real people, predictive checks."""
