"""launch.environment: the settings for the ranks, of which the user's own are left as they are. Starts nothing."""

import pytest

from parallel_dl.launch import environment
from parallel_dl.launch.environment import settings

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@pytest.fixture
def machine(monkeypatch):
    """machine(cores, root, free): a machine of that kind."""

    def machine(cores=4, root=False, free=1 << 30):
        monkeypatch.setattr(environment, "cores", lambda: cores)
        monkeypatch.setattr(environment, "shared_memory_free", lambda: free)
        monkeypatch.setattr("os.geteuid", lambda: 0 if root else 1000)

    return machine


def test_what_the_user_has_set_stays(machine):
    machine(root=True, free=1 << 20)
    for name in settings(8, "/job", {}):
        assert name not in settings(8, "/job", {name: "mine"})


@pytest.mark.parametrize("ranks", [1, 2, 64])
def test_more_ranks_than_cores_may_start_and_give_way(machine, ranks):
    machine()
    made = settings(ranks, "/job", {})
    assert made["PRTE_MCA_rmaps_default_mapping_policy"] == ":oversubscribe"
    assert made["PRTE_MCA_hwloc_default_binding_policy"] == "none"
    assert made["OMPI_MCA_mpi_yield_when_idle"] == "1"
    assert ("MPIR_CVAR_ENABLE_HEAVY_YIELD" in made) == (ranks > 4)  # with a core for each it would only be slower


@pytest.mark.parametrize(("cores", "ranks", "threads"), [(8, 1, "8"), (8, 2, "4"), (8, 3, "2"), (2, 5, "1")])
def test_threads_are_the_cores_of_a_rank(machine, cores, ranks, threads):
    machine(cores)
    assert {settings(ranks, "/job", {})[name] for name in THREADS} == {threads}


@pytest.mark.parametrize("name", THREADS)
def test_one_number_of_threads_by_the_user_is_for_all(machine, name):
    machine()
    assert not set(THREADS) & set(settings(2, "/job", {name: "3"}))


@pytest.mark.parametrize("name", ["OMPI_MCA_btl", "OMPI_MCA_pml", "OMPI_MCA_mtl", "PRTE_MCA_prte_default_hostfile"])
def test_the_transport_is_ours_unless_the_user_chose_one(machine, name):
    machine()
    assert settings(2, "/job", {})["OMPI_MCA_btl"] == "self,sm"
    assert "OMPI_MCA_btl" not in settings(2, "/job", {name: "ucx"})


def test_only_root_is_allowed_to_be_root(machine):
    machine(root=False)
    assert not [name for name in settings(2, "/job", {}) if "ROOT" in name]
    machine(root=True)
    assert len([name for name in settings(2, "/job", {}) if "ROOT" in name]) == 2


def test_a_small_dev_shm_is_left_alone(machine):
    machine(free=1 << 20)
    made = settings(2, "/job", {})
    assert made["OMPI_MCA_btl_sm_backing_directory"] == made["OMPI_MCA_osc_sm_backing_directory"] == "/job"
    assert made["MPIR_CVAR_NOLOCAL"] == "1"
    machine()
    assert "MPIR_CVAR_NOLOCAL" not in settings(2, "/job", {})


@pytest.mark.parametrize(
    ("variables", "inside", "rank", "size"),
    [
        ({}, False, 0, 1),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}, True, 2, 3),
        ({"PMI_RANK": "1", "PMI_SIZE": "4"}, True, 1, 4),
        ({"PMI_RANK": "", "PMI_SIZE": "many"}, False, 0, 1),
    ],
)
def test_the_rank_that_mpirun_gives(monkeypatch, variables, inside, rank, size):
    for name in ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMI_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (environment.inside_mpirun(), environment.mpirun_rank(), environment.mpirun_size()) == (inside, rank, size)
