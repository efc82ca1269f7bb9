"""Words and short lines."""
