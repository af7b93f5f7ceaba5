"""How k moves from round to round."""
