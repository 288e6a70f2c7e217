"""What PLONK and FFLONK share."""
