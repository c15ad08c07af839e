"""A bundle at work: resolve a user, onboard one, score texts for them."""
