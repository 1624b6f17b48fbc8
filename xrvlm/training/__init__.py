"""How a method is fitted."""
