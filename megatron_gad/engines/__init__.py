"""Text generation from the student's current weights, behind one protocol."""
