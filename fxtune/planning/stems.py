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
        reachable = [(tap, way) for tap in self._known(port) if (way := self._way(tap, self.region)) is not None]
        # A copy is taken where the value is computed; else the way is as short as can be.
        tap, (out, into) = reachable[0] if copied else min(reachable, key=lambda found: sum(map(len, found[1])))
        return Stem(tap, out, into, port.channel_axis, len(port.shape), copied, port.width)

    def _home(self, ports: Sequence[Port], output: Port) -> str:
        """The first region that holds the output and to which all others come: handed out on the way if that can be,
        else taken in, too."""
        outputs = [tap.region for tap in self.places.ways_out(output.taps)]
        for taken_in in (False, True):
            for region in outputs:
                if all(self._comes(port, region, taken_in=taken_in) for port in (*ports, output)):
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

    def _comes(self, port: Port, region: str, *, taken_in: bool) -> bool:
        ways = (self._way(tap, region) for tap in self._known(port))
        return any(way is not None and (taken_in or not way[1]) for way in ways)

    def _way(self, tap: Tap, region: str) -> tuple[tuple[Tap, ...], tuple[Tap, ...]] | None:
        return self.places.way(tap.region, region)
