"""What every solver does around its algorithm."""
