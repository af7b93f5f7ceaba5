"""Text in aligned columns, for terminals."""


def aligned(lines: list[list[str]], sides: str) -> str:
  """Puts cells into columns of equal width.

  >>> print(aligned([["k", "loss"], ["1000", "0.3"]], "<>"))
  k     loss
  1000   0.3

  Args:
    lines: the cells of each line.
    sides: for each column "<", on the left, or ">", on the right.

  Returns:
    The lines.
  """
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
      "  ".join(
          f"{cell:{side}{width}}"
          for cell, side, width in zip(line, sides, widths, strict=True)
      ).rstrip()
      for line in lines
  )
