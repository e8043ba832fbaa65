"""Maximum simulated likelihood of mixed logits: what is fitted, and the packages that fit it."""
