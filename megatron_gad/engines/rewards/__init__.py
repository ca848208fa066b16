"""Rewards beside the discriminator's score: the user's functions, and a few that are shipped."""
