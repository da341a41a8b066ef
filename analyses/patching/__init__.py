"""What a model does when an activation of one run takes the place of another's."""
