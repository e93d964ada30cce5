"""Where a bypass can run: the innermost region that holds the last output, and to which every stem can be handed."""

from __future__ import annotations

from collections.abc import Sequence

from fxtune.errors import PlanError
from fxtune.matching import Port
from fxtune.planning.bypass import Stem
from fxtune.planning.place import Places
from fxtune.planning.storage import Overwritten
from fxtune.view import Tap, View


class Stems:
    """Finds the region of a bypass and the way of each stem to it.

    Args:
        view: the view.
        places: the regions.
        ports: x_0 to x_L: what the bypass reads.
        output: what its result stands for.

    Raises:
        PlanError: there is no such region.
    """

    def __init__(self, view: View, places: Places, ports: Sequence[Port], output: Port) -> None:
        self.view, self.places = view, places
        self._overwritten = Overwritten(view)
        self.region = self._home(ports, output)

    def stem(self, port: Port) -> Stem:
        """How a value comes to the region."""
        copied = port.value in self._overwritten
        reachable = [tap for tap in self._known(port) if self._calls(tap) is not None]
        # A copy is taken where the value is computed; else the way is as short as can be.
        tap = reachable[0] if copied else min(reachable, key=lambda tap: len(tap.region))
        return Stem(tap, self._calls(tap) or (), port.channel_axis, len(port.shape), copied)

    def _home(self, ports: Sequence[Port], output: Port) -> str:
        outputs = [tap.region for tap in self.places.ways_out(output.taps)]
        for region in outputs:
            self.region = region
            if all(any(self._calls(tap) is not None for tap in self._known(port)) for port in (*ports, output)):
                return region
        computed = ", ".join(map(str, output.taps)) or "a place inside a folded module"
        repeated = [str(tap) for tap in output.taps if len(self.view.tapped[tap]) > 1]
        raise PlanError(
            "a bypass cannot be spliced in: no graph of the model holds all that it reads and what it stands for",
            found=f"the last output stands at {computed}"
            + (f"; {repeated[0]} runs several times, so the result would flow back into the trunk" if repeated else ""),
            fix="choose other sites (`along:`, `stems:`)",
        )

    def _known(self, port: Port) -> list[Tap]:
        """Where a value stands, and no other call's value."""
        return [tap for tap in port.taps if self.view.tapped[tap] == [port.value]]

    def _calls(self, tap: Tap) -> tuple[Tap, ...] | None:
        """The calls from a tapped value's region out to the bypass's; None where there is no way."""
        calls: list[Tap] = []
        region = tap.region
        while region != self.region:
            found = self.places.callers(region)
            if len(found) != 1:
                return None
            calls.append(found[0])
            region = found[0].region
        return tuple(calls)
