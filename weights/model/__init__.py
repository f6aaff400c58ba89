"""What a file of weights is: its layout, its architecture, its optimizer state, where it comes from."""
