"""Setting the garbage collector aside."""

import gc

import pytest

from fxtune.collecting import collector_aside


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_aside_and_then_as_it_was(enabled: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(KeyError), collector_aside():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
