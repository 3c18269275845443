"""What gisting saves."""
