"""What happens in a step, stage by stage."""
