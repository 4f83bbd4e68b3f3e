"""What runs the work of this process, here or on the workers of a broker, behind one interface."""
