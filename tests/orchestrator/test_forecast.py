"""What is said of a sweep on a cluster that isn't there: from measured steps by hand, and what can't be said."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.costs import Measurement, remember, training_seconds, workload_key
from orchestrator.forecast import SWEEP_S, Forecast, Shape, forecast, read_shape
from orchestrator.ledger import Ledger
from orchestrator.outlook import forecast_document, limits
from orchestrator.plan import Plan, main
from orchestrator.simulation import Cluster
from tests.orchestrator.comparisons import plan_of
from tests.orchestrator.tables import MemoryLedger
from tests.orchestrator.test_estimate import plan_of_table
from tests.orchestrator.test_sweep_cli import HEAVY

ONE = Measurement(
    step_s=36.0,
    steps=10,
    images=4,
    eval_image_s=18.0,
    checkpoint_s=9.0,
    gradient_bytes=10**8,
    hardware="a CPU",
    time=1.0,
)
CORES = Cluster(nodes=1, devices=2, gpus=False, cpus=2, network=1e9, links=1e10)


def measured(plan: Plan, one: Measurement = ONE) -> dict[str, Measurement]:
    return {workload_key(row): one for row in plan.rows}


def told(plan: Plan, ledger: MemoryLedger, shape: str, cluster: Cluster, one: Measurement = ONE) -> Forecast:
    found = forecast(plan, ledger, measured(plan, one), read_shape(shape), cluster, start_s=20.0)
    assert found is not None
    return found


def test_a_forecast_adds_up_what_an_estimate_does(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, set=("checkpoint.every=50", "evaluation.every=40"), seeds=(0,))
    found = told(plan, MemoryLedger(), "1x2xcpu", CORES)
    each = training_seconds(plan.rows[0], ONE) + 20
    assert found.at_once == 2
    assert found.seconds == pytest.approx(sum(SWEEP_S) + 2 * each), "four trainings, two at a time"
    assert found.device_hours == pytest.approx(2 * found.seconds / 3600)
    assert found.idle == pytest.approx(2 * sum(SWEEP_S) / 3600)
    document, first = forecast_document(found), SWEEP_S[0]
    assert sum(document["shares"].values()) == pytest.approx(1)
    assert document["utilisation"] == pytest.approx(4 * 100 * 36 / (2 * found.seconds))
    assert [one["start"] for one in document["trainings"]] == pytest.approx([first, first, first + each, first + each])
    wider = told(plan, MemoryLedger(), "1x9xcpu", replace(CORES, devices=9, cpus=9))
    assert wider.seconds == pytest.approx(sum(SWEEP_S) + each)
    assert "the longest training" in limits(wider)[0]
    assert "the number of cores" in limits(found)[0]


def test_what_is_done_is_not_simulated(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, seeds=(0,))
    ledger = MemoryLedger()
    for row in ("plain", "half", "both"):
        ledger.state(plan, row, "finished", AP=1.0)
    begun = ledger.state(plan, "up", "pending")
    ledger.records[begun] = replace(ledger.records[begun], step=75)
    found = told(plan, ledger, "1x2xcpu", CORES)
    assert found.seconds == pytest.approx(sum(SWEEP_S) + 20 + 25 * 36 + 2 * 18 + 9)
    ledger.state(plan, "up", "finished", AP=1.0)
    assert forecast(plan, ledger, measured(plan), read_shape("1x2xcpu"), CORES) is None


def test_gradients_cross_the_network_that_is_stated(tmp_path: Path) -> None:
    settings = ("resources.workers=2", "resources.placement=spread")
    plan = plan_of(tmp_path, set=settings, seeds=(0,))
    two = Cluster(nodes=2, devices=1, gpus=False, cpus=1, network=1e6, links=1e10)
    found = told(plan, MemoryLedger(), "2x1xcpu", two, replace(ONE, step_s=1.0))
    # 10^8 bytes at 10^6 a second over two workers take 100 s.
    assert found.hours("gradients") == pytest.approx(4 * 2 * 100 * (100 - 2 / 3) / 3600)
    assert "waiting for gradients" in limits(found)[0]


@pytest.mark.parametrize("hardware", ["Tesla V100-SXM2-16GB", "NVIDIA V100"])
def test_what_was_measured_on_such_a_gpu_goes_first(tmp_path: Path, hardware: str) -> None:
    plan = plan_of(tmp_path, set=("resources.gpus_per_worker=1",), seeds=(0,))
    gpus = Cluster(nodes=1, devices=2, gpus=True, cpus=2, network=1e9, links=1e10)
    found = told(plan, MemoryLedger(), "1x2xV100", gpus, replace(ONE, device="cuda", hardware=hardware))
    assert set(found.sources.values()) == {f"measured on {hardware}"}
    assert found.works[0].devices == 1
    with pytest.raises(Exception, match="nothing is published for the GPU V10,"):
        forecast(plan, MemoryLedger(), measured(plan, found_on(hardware)), read_shape("1x2xV10"), gpus)


def found_on(hardware: str) -> Measurement:
    return replace(ONE, device="cuda", hardware=hardware)


@pytest.mark.parametrize(
    ("text", "shape"),
    [("8x8xV100", Shape(8, 8, "V100")), ("1x2xCPU", Shape(1, 2, "cpu")), ("64x8xv100", Shape(64, 8, "V100"))],
)
def test_a_cluster_is_nodes_gpus_and_a_name(text: str, shape: Shape) -> None:
    assert read_shape(text) == shape


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--cluster", "8x8"], "--cluster 8x8 is not NODESxGPUSxNAME; write 8x8xV100"),
        (["--cluster", "0x8xV100"], "is not NODESxGPUSxNAME"),
        (["--cluster", "1x2xcpu"], "nothing was measured on a CPU"),
        (["--cluster", "1x2xcpu"], "--dry-run --measure` here times them"),
        (["--cluster", "1x8xQ900"], "nothing is published for the GPU Q900, only for V100"),
        (["--cluster", "1x8xV100"], "nothing is published for atss on r18 with a V100"),
        (["--cluster", "1x2xcpu", "--network", "0"], "is not a number > 0"),
        ([], "--cluster"),
    ],
)
def test_what_cannot_be_said_is_one_sentence(
    table: Path, words: list[str], sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([str(table), *words]) == 2
    said = capfd.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_a_training_that_has_no_room_is_refused(table: Path, capfd: pytest.CaptureFixture[str]) -> None:
    remember_all(table, "resources.cpus_per_worker=4")
    assert main([str(table), "--set", "resources.cpus_per_worker=4", "--cluster", "2x2xcpu"]) == 2
    assert "needs 1 worker of 4 CPU each, and 2x2xcpu has 2 nodes with 4 CPU and no GPU" in capfd.readouterr().err


def remember_all(table: Path, *settings: str) -> None:
    plan = plan_of_table(table) if not settings else plan_with(table, settings)
    for row in plan.rows:
        remember(Ledger(plan.storage).place, workload_key(row), ONE)


def plan_with(table: Path, settings: tuple[str, ...]) -> Plan:
    from orchestrator.plan import make_plan
    from orchestrator.request import SweepRequest

    return make_plan(SweepRequest(str(table), set=settings), "describe")


def test_the_command_says_it_in_one_table_and_imports_nothing_heavy(
    table: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    remember_all(table)
    assert main([str(table), "--cluster", "1x2xcpu", "--price", "3", "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    seconds = document["forecast"]["seconds"]
    assert document["forecast"]["cost"] == pytest.approx(3 * 2 * seconds / 3600)
    assert [row["state"] for row in document["rows"]] == ["pending", "pending"]
    code = (
        "import sys; from orchestrator.plan import main\n"
        "status = main(sys.argv[1:])\n"
        f"print('heavy:', *[name for name in {HEAVY} if name in sys.modules], file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(table), "--cluster", "1x2xcpu", "--price", "3"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.strip()) == (0, "heavy:")
    first, *lines = done.stdout.splitlines()
    assert first == "tiny on 1x2xcpu, simulated: 2 trainings, 2 at a time"
    (cost,) = (line for line in lines if line.startswith("cost at 3"))
    assert int(cost.split()[3]) == round(document["forecast"]["cost"])
    assert any(line.startswith("limit     the longest training: 1:1 takes") for line in lines)
    assert any("36 s a step: 1:1, D_up:1 (measured on a CPU)" in line for line in lines)
    assert not list(table.parent.glob("storage/sweeps")), "nothing is written"
