"""Other people's packages on the same matrices and objectives: `python -m benchmarks.peers [MATRIX ...]`.

Each peer is installed into an environment of its own (.peers/) and solves in a process of its own; its pair is scored
here, on the objective that it comes nearest to: entrywise ℓ1, the sum of the rows' ℓ2 norms, or Frobenius. Against it
stands the solver of lpjax for that objective, with the fewest iterations whose result is as good. Seconds are those of
the solve alone, after a warm-up, the least of three (of fewer if a peer takes long), divided by those of SciPy's
gesdd on the same matrix in the same run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.linalg

import lpjax
from benchmarks.matrices import MATRICES
from benchmarks.solvers import best_time
from lpjax._files.json import write_json
from lpjax._provenance import run_record

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "peers"
LIMIT = 60  # seconds that a peer may take
COUNTS = (0, 1, 2, 4, 8, 16, 32, 64, 90)  # iterations of lpjax that are tried
LONG = 32  # solves of this many iterations or more are timed once, after a warm-up


class Peer(NamedTuple):
    """What to install, and the objective that its pair is scored on."""

    requirements: tuple[str, ...]
    objective: str


PEERS = {
    "scikit-learn randomized_svd": Peer(("scikit-learn==1.9.1",), "frobenius"),
    "scikit-learn PCA": Peer(("scikit-learn==1.9.1",), "frobenius"),
    "torch svd_lowrank": Peer(("torch", "numpy"), "frobenius"),
    "fbpca": Peer(("fbpca==1.0", "scipy", "setuptools<80"), "frobenius"),
    "pymanopt": Peer(("pymanopt==2.2.1",), "rows"),
    "robpy PCALocantore": Peer(("robpy==0.0.6",), "rows"),
    "robpy ROBPCA": Peer(("robpy==0.0.6",), "rows"),
    "rpca": Peer(("rpca==0.1.6",), "entries"),
    "pyrpca": Peer(("pyrpca==1.0.1",), "entries"),
    "skpcp": Peer(("skpcp==0.1.0",), "entries"),
    "tensorly": Peer(("tensorly==0.10.0",), "entries"),
    "NumPy IRLS": Peer(("numpy",), "entries"),
}
OURS = {"frobenius": "svd", "rows": "irls_rows", "entries": "admm_entries"}


# Labels in `benchmarks.matrices`.
LABELS = ("embedding", "kernel", "planted", "bert-kernel-tails", "bert-tall-kernel-entries", "bert-embedding")


def score(matrix: np.ndarray, left: np.ndarray, right: np.ndarray, objective: str) -> float:
    """The objective of a pair, in double precision."""
    residual = matrix.astype(np.float64) - left.astype(np.float64) @ right.astype(np.float64)
    if objective == "entries":
        return float(np.abs(residual).sum())
    norms = np.linalg.norm(residual, axis=1)
    return float(norms.sum() if objective == "rows" else np.linalg.norm(norms))


def environment(name: str, requirements: tuple[str, ...]) -> Path:
    """The Python of a peer's environment, made if it is missing."""
    folder = ROOT / ".peers" / name.replace(" ", "-")
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *requirements], check=True, stderr=subprocess.DEVNULL
        )
        (folder / "ready").touch()
    return python


def run_peer(name: str, source: Path, rank: int) -> dict[str, Any]:
    """The pair and seconds of a peer, or why it failed."""
    python = environment(name, PEERS[name].requirements)
    target = source.with_name("pair.npz")
    target.unlink(missing_ok=True)
    command = [python, Path(__file__).with_name("in_peer.py"), name, source, str(rank), target]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return {"failure": f"not done after {LIMIT} s"}
    except subprocess.CalledProcessError as error:
        return {"failure": (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]}
    with np.load(target) as archive:
        seconds, versions = float(archive["seconds"]), archive["versions"].tolist()
        return {"left": archive["left"], "right": archive["right"], "seconds": seconds, "versions": versions}


def ours(
    matrix: np.ndarray, rank: int, objective: str, goal: float, known: dict[tuple[str, int], float]
) -> dict[str, Any]:
    """The fewest iterations that reach `goal`, and their seconds; the largest number tried if none reaches it.

    `known` holds what objective and iterations came to, for other peers.
    """
    solver, on_device = OURS[objective], jnp.asarray(matrix)

    def solve(count: int) -> lpjax.Solution:
        options = {} if solver == "svd" else {"p": 1.0, "num_iters": count}
        return lpjax.SOLVERS[solver](on_device, rank, **options)

    def value(count: int) -> float:
        if (objective, count) not in known:
            solution = solve(count)
            known[objective, count] = score(matrix, np.asarray(solution.left), np.asarray(solution.right), objective)
        return known[objective, count]

    counts = COUNTS[:1] if solver == "svd" else COUNTS
    last = next((count for count in counts if value(count) <= goal * (1 + 1e-6)), counts[-1])
    seconds = best_time(lambda: solve(last), 3 if last < LONG else 1)
    return {"solver": solver, "num_iters": last, "objective": value(last), "seconds": seconds}


def measure(label: str, names: list[str]) -> dict[str, Any]:
    """All peers on one matrix."""
    matrix, rank = MATRICES[label].make(), MATRICES[label].rank
    exact = lpjax.svd(jnp.asarray(matrix), rank)
    known: dict[tuple[str, int], float] = {}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "matrix.npy"
        np.save(source, matrix)
        for name in names:
            objective = PEERS[name].objective
            peer = run_peer(name, source, rank)
            gesdd = best_time(lambda: scipy.linalg.svd(matrix, full_matrices=False, check_finite=False))
            plain = score(matrix, np.asarray(exact.left), np.asarray(exact.right), objective)
            row: dict[str, Any] = {"peer": name, "objective": objective, "svd_objective": plain, "gesdd_seconds": gesdd}
            if "failure" in peer:
                goal = -np.inf
                row["failure"] = peer["failure"]
            else:
                goal = score(matrix, peer["left"], peer["right"], objective)
                row |= {"seconds": peer["seconds"], "value": goal, "versions": peer["versions"]}
            row["ours"] = ours(matrix, rank, objective, goal, known)
            rows.append(row)
            print(label, name, row.get("seconds", row.get("failure")), row["ours"], file=sys.stderr, flush=True)
    return {"matrix": label, "shape": list(matrix.shape), "rank": rank, "rows": rows}


def main() -> None:
    """Run every peer on the matrices that are asked for, all by default; write benchmarks/results/peers/MATRIX.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("matrices", nargs="*", choices=MATRICES, default=LABELS, metavar="MATRIX")
    parser.add_argument("--only", choices=PEERS, help="one peer; then nothing is written")
    options = parser.parse_args()
    names = [options.only] if options.only else list(PEERS)
    for name in names:
        environment(name, PEERS[name].requirements)
    for label in options.matrices:
        record = run_record(seed=0) | {"limit_seconds": LIMIT, "threads": os.cpu_count()}
        record |= measure(label, names)
        if not options.only:
            write_json(RESULTS / f"{label}.json", record)


if __name__ == "__main__":
    main()
