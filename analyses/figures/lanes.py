"""Paths of edges in the layer x head drawing that avoid all nodes, by going up in lanes between the columns.

1. An edge that passes no row of heads is a single curve, vertical at both ends.
2. Any other edge turns into the lane next to its destination's column above the source's row, goes straight up, and
   turns out of the lane below its destination. Edges into the logits use the lane next to their source instead.
3. Edges that share a lane are spread over its width.
`pages/paths.js` computes the same paths; a test checks that both agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

BEND = 0.45  # distance of control points from the ends / height of the curve
SPREAD = 31  # positions side by side in a lane


class Place(NamedTuple):
    """A node's position: x of its middle, y of its upper and lower end."""

    x: float
    top: float
    bottom: float


@dataclass(frozen=True)
class Lanes:
    """The space between the rows and columns of nodes."""

    left: float  # the first lane, left of the first column
    pitch: float  # distance between neighbouring lanes
    room: float  # largest distance of an edge from the middle of its lane
    row: Float[np.ndarray, " source"]  # lower end of the next row of heads above, or of the logits
    own: Float[np.ndarray, " source"]  # lower end of the next node above in the same column, or of the logits
    under: Float[np.ndarray, " destination"]  # upper end of the next node below in the same column, or of the input
    middle: Float[np.ndarray, " destination"]  # x of the destination's node
    last: float  # upper end of the last row of heads

    def paths(
        self,
        start: Float[np.ndarray, "edge 2"],
        end: Float[np.ndarray, "edge 2"],
        source: Int[np.ndarray, " edge"],
        destination: Int[np.ndarray, " edge"],
    ) -> Float[np.ndarray, "edge 8 2"]:
        """Two cubic curves of 4 points each, joined by a straight line; for a single curve the second is one point.

        Args:
            source, destination: indices of the nodes in the graph
        """
        x, y = start.T
        to_x, to_y = end.T
        low, lane, high = self._turns(x, to_x, to_y, source, destination)
        rise, fall = BEND * (y - low), BEND * (high - to_y)
        corners = [(x, y), (x, y - rise), (lane, low + rise), (lane, low)]
        corners += [(lane, high), (lane, high - fall), (to_x, to_y + fall), (to_x, to_y)]
        return np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1)

    def _turns(
        self,
        x: Float[np.ndarray, " edge"],
        to_x: Float[np.ndarray, " edge"],
        to_y: Float[np.ndarray, " edge"],
        source: Int[np.ndarray, " edge"],
        destination: Int[np.ndarray, " edge"],
    ) -> tuple[Float[np.ndarray, " edge"], Float[np.ndarray, " edge"], Float[np.ndarray, " edge"]]:
        """Y where the edge enters its lane, the lane's x, and y where it leaves; the edge's end if it needs no lane."""
        middle, to_logits = self.middle[destination], destination == len(self.under) - 1
        above = np.abs(x - middle) < self.pitch / 3
        free = (to_y >= self.row[source] - 0.01) | (above & ~to_logits & (to_y >= self.own[source] - 0.01))
        leaves = to_logits & (source > 0)  # next to the source's column, else next to the destination's
        column, way = np.where(leaves, (x, middle - x), (middle, x - middle))
        lane = np.floor((column - self.left) / self.pitch + np.where(way < -self.pitch / 3, -0.25, 0.75))
        beside = self.room * ((13 * source + 29 * destination) % SPREAD / (SPREAD // 2) - 1)
        low = np.where(to_logits, self.own[source], self.row[source])
        high = np.minimum(low, np.where(to_logits, self.last, self.under[destination]))
        turned = (low, self.left + self.pitch * lane + beside, high)
        low, lane, high = (np.where(free, one, other) for one, other in zip((to_y, to_x, to_y), turned, strict=True))
        return low, lane, high


def lanes(
    sources: Sequence[Place],
    destinations: Sequence[Place],
    rows: Sequence[Place],
    left: float,
    pitch: float,
    widest: float,
) -> Lanes:
    """The lanes of a drawing whose first source is the input and whose last destination is the logits.

    Args:
        rows: one node of each row of heads
        left: x of the first lane
        pitch: distance between neighbouring lanes
        widest: width of the nodes between them
    """
    floor, logits = sources[0].top, destinations[-1].bottom
    places = {*sources, *destinations[:-1]}

    def near(place: Place) -> list[Place]:
        return [other for other in places if abs(other.x - place.x) < pitch / 3]

    def lowest_above(place: Place, others: Sequence[Place]) -> float:
        return max([logits, *(other.bottom for other in others if other.bottom <= place.top)])

    return Lanes(
        left,
        pitch,
        room=min(4.0, max(0.0, (pitch - widest) / 2 - 1)),
        row=np.array([lowest_above(source, rows) for source in sources]),
        own=np.array([lowest_above(source, near(source)) for source in sources]),
        under=np.array([min([floor, *(o.top for o in near(end) if o.top >= end.bottom)]) for end in destinations]),
        middle=np.array([end.x for end in destinations]),
        last=min(place.top for place in rows),
    )
