"""The work of a row as a function of Pixeltable, which finds it by its module."""
import pixeltable as pxt

import work


@pxt.udf
def length(text: str) -> int:
    return work.length(text)
