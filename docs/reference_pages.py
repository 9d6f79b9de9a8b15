"""Which names are on which page of the API reference. New public names of a package on a page appear by themselves."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Page:
    """One page: `names` of `module`, by default all that it makes public, without those in `without`."""

    file: str
    title: str
    module: str
    names: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


PAGES = (
    Page("nn", "Networks: layers, modules, losses", "parallel_dl.nn"),
    Page("autograd", "Automatic differentiation", "parallel_dl.autograd", without=("ops",)),
    Page("ops", "Operations on tensors", "parallel_dl.autograd.ops"),
    Page("optim", "Optimizers", "parallel_dl.optim"),
    Page("datasets", "Data sets and batches", "parallel_dl.datasets"),
    Page("layout", "Layout: how a run uses the ranks", "parallel_dl.layout", ("Layout",)),
    Page(
        "data-parallel",
        "Data parallelism in your own loop",
        "parallel_dl.data_parallel",
        ("GradientAllReduce", "replicas_agree", "synchronize_batch_norm"),
    ),
    Page("trainer", "Trainer", "parallel_dl.trainer", ("Trainer", "Result")),
    Page(
        "mpi",
        "Communicators: arrays between ranks",
        "parallel_dl.mpi",
        (
            *("world", "alone", "Communicator", "Pending", "Mesh", "finish"),
            *("collective", "Observer", "Ledger", "Timeline", "FlightRecorder"),
        ),
    ),
    Page("collectives", "Collectives: tensors between ranks", "parallel_dl.mpi.collectives"),
    Page(
        "splits",
        "Splits: how a layer is divided among ranks",
        "parallel_dl.splits",
        ("rule", "Site", "Division", "Position", "Finish", "plan", "Plan", "messages", "default_splits"),
    ),
    Page(
        "mesh", "Meshes, placements, and the moves between them", "parallel_dl.mesh", without=("Shape", "State", "Path")
    ),
    Page(
        "schedule",
        "Schedules: a step as data",
        "parallel_dl.schedule",
        ("register", "make", "Plan", "Program", "Action", "check", "simulate"),
    ),
    Page(
        "equivalence",
        "Proving that parallel equals serial",
        "parallel_dl.equivalence",
        ("assert_equivalent", "assert_adjoint", "assert_same_program", "assert_close_to_serial", "watch"),
    ),
)

# classes whose objects a program receives but does not make
NOT_MADE = ("Deferred", "Pending")

# arguments that mean the same everywhere, unless a docstring says otherwise
COMMON = {
    "array": "this rank's NumPy array",
    "axis": "the array axis, counted from 0, negative ones from the last; for reductions also several, or None for all",
    "batch_size": "the number of samples in a global batch",
    "bias": "whether there is a bias",
    "comm": "the communicator, whose ranks all make this call",
    "concat_sizes": "like `sizes`, along `concat_axis`",
    "clip_norm": "the value to which the global gradient norm is clipped; None for no clipping",
    "destination": "the rank that receives",
    "dilation": "the spacing of the kernel's pixels: a number, or (vertical, horizontal)",
    "dtype": "a NumPy type, or its name",
    "eps": "a small number added before a division or a root, to keep it away from zero",
    "input_shape": "the shape of one sample, without the sample axis",
    "keepdims": "whether reduced axes are kept, with length 1",
    "facts": "what must be the same on all ranks",
    "kernel": "the size of the window: (vertical, horizontal)",
    "kernel_size": "the size of the kernel or window: a number, or (vertical, horizontal)",
    "layout": "a `Layout`",
    "loss": "a function (outputs, targets, total)",
    "lr": "the learning rate, a number above 0",
    "measure": "whether to measure the output shape of a layer that does not define it, by a forward pass",
    "microbatches": "the number of microbatches in a batch",
    "name": "the name used in errors and reports",
    "op": "sum, prod, max or min",
    "options": "the options of a group of parameters, by name",
    "owned": "the slice of rows that each rank has, by rank",
    "padding": "zeros on each side: a number, or (vertical, horizontal)",
    "parameters": "a list of parameters, or of dictionaries with their own options (see `Optimizer`)",
    "path": "a file or folder",
    "ranks": "the number of ranks",
    "root": "the rank that gives, or gets, the whole array",
    "seed": "the random seed: the same seed gives the same values",
    "sizes": "the number of rows that each rank has along the axis, by rank; None divides evenly",
    "source": "the rank that sends",
    "states": "the state along each mesh axis",
    "stride": "the distance between neighbouring windows: a number, or (vertical, horizontal)",
    "static": "the operation's keyword arguments",
    "tag": "a number: a message must be received with the tag with which it was sent",
    "thing": "any object that can be pickled",
    "times": "a `schedule.Times`: how long each kind of action takes",
    "wanted": "the slice of rows that each rank gets, by rank",
    "x": "the input, a tensor or an array",
}

EXTENSIONS = (
    ("an operation", "autograd", "primitive", "a function on arrays that returns its value and its pullbacks"),
    ("a layer", "nn", "Module", "`forward`; for plans and costs `output_shape` and `operations` (`Operations`)"),
    ("a split of a layer", "splits", "rule", "a function of a `Site` that returns a `Division`"),
    ("a collective", "collectives", "movement", "a function on arrays and a communicator, with its adjoint"),
    ("an optimizer", "optim", "Optimizer", "a subclass with `state_of` and `_update`"),
    ("a data set", "datasets", "Dataset", "one object of this class"),
    (
        "a schedule",
        "schedule",
        "register",
        "a function (pp, microbatches) that returns a list of (stage, kind, microbatch) per rank",
    ),
    ("a loss", "trainer", "Trainer", "a function (outputs, targets, total) for its argument `loss`"),
    ("a test of any of these", "equivalence", "assert_equivalent", "a network, a layout and a batch"),
    ("a test of a training program", "equivalence", "assert_same_program", "a function or a script"),
)
