"""Features of the frozen tower: computed once and stored, or computed in every epoch."""
