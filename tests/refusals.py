"""What the tests of refused inputs share."""

import pytest

from vidseg_core.common import InputError


def refusal(*words, call, **arguments):
    """Asserts that the call is refused by a text with all these words."""
    with pytest.raises(InputError) as info:
        call(**arguments)
    assert all(word in str(info.value) for word in words), str(info.value)
