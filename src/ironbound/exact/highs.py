"""Programs solved by HiGHS, within a time limit; what comes back is data, and says what may be relied on.

Source: Huangfu & Hall (2018), Parallelizing the dual revised simplex method; https://highs.dev.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ironbound.errors import IronboundError
from ironbound.exact.program import Program

_INFINITE = 1e20  # a bound as high as this says that nothing is feasible
DUAL = 1e-9  # by which reduced costs may have the wrong sign


@dataclass(frozen=True, eq=False)
class LinearSolution:
    """What a linear program's solver found.

    Attributes:
        status: "optimal", "infeasible", "time" or "failed".
        objective: cost · v at `values` as the solver sees it: no bound.
        lower: a lower bound of the minimum by the multipliers and weak duality: it does not rely on the solver.
        values: [columns], the solver's point, or None.
        multipliers: of the rows, [rows]; 0 where the solver has none.
    """

    status: str
    objective: float
    lower: float
    values: np.ndarray | None
    multipliers: np.ndarray


@dataclass(frozen=True, eq=False)
class MixedSolution:
    """What a mixed-integer program's solver found.

    Attributes:
        status: "optimal", "enough", "infeasible", "target", "time", "nodes" or "failed".
        lower: the solver's lower bound of the minimum less `tolerance`; -inf where there is none, also where the solver
            calls the program infeasible: that statement is not believed.
        objective: at the best point found, or infinite.
        values: [columns], that point, or None.
        nodes: of the search.
        tolerance: see `tolerance`.
    """

    status: str
    lower: float
    objective: float
    values: np.ndarray | None
    nodes: int
    tolerance: float


def tolerance(program: Program, cost: np.ndarray) -> float:
    """How much a bound of the mixed-integer solver may be too high by its tolerances.

    The bound of each of its nodes is the objective of a basis whose reduced costs may be wrong in sign by up to
    `DUAL`: each costs at most that times the width of its column, and each row's multiplier likewise times the
    row's reach. Violated rows and numbers that are whole only nearly make the minimum lower, which is safe. What is
    left to trust: the solver's presolve, cuts and statements that a node is infeasible, in float64. (That a whole
    program is infeasible is not believed: with feasibility tolerances below 1e-6 HiGHS 1.15 said so of programs with
    points that violate nothing.)

    Args:
        program: the program.
        cost: [columns].

    Returns:
        The sum, in units of the objective.
    """
    width = program.upper - program.lower
    reach = abs(program.matrix) @ width
    one_sided = np.isinf(program.row_lower) | np.isinf(program.row_upper)
    total = width.sum() + reach[one_sided].sum()
    scale = float(np.abs(cost) @ np.maximum(np.abs(program.lower), np.abs(program.upper)))
    return float(DUAL * (1.0 + total) + 1e-12 * scale)


class Solver:
    """One program under several objectives; a linear one starts from the basis of the one before.

    Args:
        program: finite, see `Program.is_finite`.
        relaxed: whether whole numbers are left out of account.
    """

    def __init__(self, program: Program, relaxed: bool = True) -> None:
        import highspy

        self.program = program
        self._names = highspy.HighsModelStatus
        self.highs: Any = highspy.Highs()
        integral = not relaxed and bool(program.integral.any())
        for name, value in _OPTIONS.items():
            self._do(self.highs.setOptionValue(name, value))
        if relaxed:  # the bound of a linear program is checked, so that nothing is risked
            self._do(self.highs.setOptionValue("primal_feasibility_tolerance", 1e-9))
        self._do(self.highs.passModel(_model(highspy, program, integral)))
        self._columns = np.arange(len(program.lower), dtype=np.int32)

    def minimum(self, cost: np.ndarray, seconds: float = np.inf) -> LinearSolution:
        """Minimises a linear function over the relaxed program."""
        status = self._run(cost, seconds)
        solution, info = self.highs.getSolution(), self.highs.getInfo()
        multipliers = np.zeros(len(self.program.row_lower))
        if solution.dual_valid:
            multipliers = np.array(solution.row_dual, dtype=np.float64)
        values = np.array(solution.col_value) if solution.value_valid else None
        lower = max(self.program.dual_bound(cost, multipliers), self.program.dual_bound(cost, 0 * multipliers))
        return LinearSolution(status, float(info.objective_function_value), lower, values, multipliers)

    def mixed_minimum(
        self,
        cost: np.ndarray,
        seconds: float = np.inf,
        target: float = -np.inf,
        enough: float = np.inf,
        nodes: int | None = None,
    ) -> MixedSolution:
        """Minimises a linear function over the program, whole numbers included.

        Args:
            cost: [columns].
            seconds: time limit.
            target: an objective that is good enough to stop at.
            enough: a lower bound above which to stop.
            nodes: most nodes of the search, or None.

        Returns:
            What was found, also where the search was stopped.
        """
        room = tolerance(self.program, cost)
        self._do(self.highs.setOptionValue("objective_target", float(target)))
        if nodes is not None:
            self._do(self.highs.setOptionValue("mip_max_nodes", int(nodes)))
        # a cutoff would make programs infeasible, and such a statement could not be told from an error
        best = _stop_above(self.highs, enough + room) if enough < np.inf else [-np.inf]
        status = self._run(cost, seconds)
        solution, info = self.highs.getSolution(), self.highs.getInfo()
        found = info.primal_solution_status == 2 and solution.value_valid
        values = np.array(solution.col_value) if found else None
        objective = float(info.objective_function_value) if found else np.inf
        lower = -np.inf
        if status not in ("infeasible", "failed") and self.program.integral.any():
            last = float(info.mip_dual_bound)
            lower = min(max(best[0], last if last < _INFINITE else -np.inf), objective) - room
        return MixedSolution(status, lower, objective, values, max(0, int(info.mip_node_count)), room)

    def _run(self, cost: np.ndarray, seconds: float) -> str:
        self._do(self.highs.changeColsCost(len(self._columns), self._columns, np.ascontiguousarray(cost)))
        limit = self.highs.getRunTime() + max(0.0, seconds)  # its clock runs on from one objective to the next
        self._do(self.highs.setOptionValue("time_limit", float(limit)))
        self.highs.run()
        names = self._names
        return {
            names.kOptimal: "optimal",
            names.kModelEmpty: "optimal",
            names.kInfeasible: "infeasible",
            names.kTimeLimit: "time",
            names.kObjectiveTarget: "target",
            names.kSolutionLimit: "nodes",
            names.kInterrupt: "enough",
        }.get(self.highs.getModelStatus(), "failed")

    def _do(self, status: Any) -> None:
        if str(status).endswith("kError"):
            raise IronboundError("HiGHS refused a program; please report it with the network and the region")


def _stop_above(highs: Any, bound: float) -> list[float]:
    """Interrupts a mixed-integer search as soon as its lower bound exceeds `bound`; the best bound seen, as it goes."""
    best = [-np.inf]

    def look(event: Any) -> None:
        found = float(event.data_out.mip_dual_bound)
        best[0] = max(best[0], found) if found < _INFINITE else best[0]
        if best[0] > bound:
            event.interrupt()

    highs.cbMipInterrupt += look
    return best


_OPTIONS = {
    "output_flag": False,
    "threads": 1,
    "random_seed": 0,
    "dual_feasibility_tolerance": DUAL,
    "mip_rel_gap": 0.0,
    "mip_abs_gap": 1e-7,
    "small_matrix_value": 1e-12,
}


def _model(highspy: Any, program: Program, integral: bool) -> Any:
    lp = highspy.HighsLp()
    lp.num_row_, lp.num_col_ = program.matrix.shape
    lp.col_cost_ = np.zeros(lp.num_col_)
    lp.col_lower_, lp.col_upper_ = program.lower, program.upper
    lp.row_lower_, lp.row_upper_ = program.row_lower, program.row_upper
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = program.matrix.indptr
    lp.a_matrix_.index_ = program.matrix.indices
    lp.a_matrix_.value_ = program.matrix.data
    if integral:
        kinds = highspy.HighsVarType
        lp.integrality_ = [kinds.kInteger if one else kinds.kContinuous for one in program.integral]
    return lp
