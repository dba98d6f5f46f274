"""Simulate published figures of whole models: rates of a step at a stated batch, or of a server
that as many clients as its cache holds keep busy.
"""

from pydantic import Field

from moesim.design.schedule import Schedule
from moesim.design.served import ServedModel
from moesim.design.step import ExpertLoad, Layout, Step
from moesim.files.toml import Strict
from moesim.hardware import Cluster, load_cluster
from moesim.hardware.serving_engines import serving_engine
from moesim.hardware.sizing import sized
from moesim.model import Precision
from moesim.model.hf_config import load_model
from moesim.serving.loop import RequestTraffic
from moesim.serving.whole import serve_model
from moesim.simulation.steps.simulate import UNEVEN, simulate_step


class WholeSetting(Strict):
    """The setting of a published figure of a whole model; sizes of a step are those of an attention
    rank, and with clients the requests of a closed loop are served instead of one step.
    """

    model: str
    layout: str
    engine: str
    precision: str
    dense_format: str = "bfloat16"
    kv_format: str = "bfloat16"
    num_replicas: int = Field(default=0, ge=0)
    micro_batches: int = Field(default=1, ge=1)
    #: whether the figure is the gain of the micro-batches over one batch
    gain: bool = False
    prefills: float = 0.0
    new_tokens: float = 0.0
    sequences: float = 0.0
    context: float = 0.0
    clients: int = 0
    isl: int = 1024
    osl: int = 1024
    #: distribution of the experts' load
    routing: str = UNEVEN.routing

    def served(self, micro_batches: int) -> ServedModel:
        """Return the design."""
        model, layout = load_model(self.model), Layout.parse(self.layout)
        return ServedModel(
            name=model.name,
            spec=model.spec,
            layout=layout,
            precision=Precision.named(self.precision),
            dense_format=self.dense_format,
            kv_format=self.kv_format,
            placement="eplb" if self.num_replicas else "contiguous",
            num_replicas=self.num_replicas,
            schedule=Schedule(num_micro_batches=micro_batches),
            engine=self.engine,
        )

    def step_s(self, cluster: Cluster, micro_batches: int) -> float:
        """Return the seconds of the step, the host's included."""
        step = Step(
            prefills=self.prefills,
            new_tokens=self.new_tokens,
            sequences=self.sequences,
            context=self.context,
        )
        served = self.served(micro_batches)
        layers = served.spec.num_layers if self.prefills else 0
        load = ExpertLoad(routing=self.routing)
        seconds = simulate_step(served, cluster, step, load=load).time_s
        engine = serving_engine(self.engine)
        return engine.time_s(seconds, self.sequences + self.prefills, layers)


def simulate_whole(setting: WholeSetting, cluster_name: str, metric: str) -> float:
    """Return what the simulator says of a figure.

    Args:
        setting: The setting.
        cluster_name: The cluster, of which as many devices are used as the layout has.
        metric: ``tpot_ms``, ``ratio``, ``tokens_per_s_per_gpu`` or ``tokens_per_s_per_node``.
    """
    layout = Layout.parse(setting.layout)
    cluster = sized(load_cluster(cluster_name), layout.num_devices)
    per_node = min(cluster.devices_per_domain, 8)
    if setting.clients:
        traffic = RequestTraffic(
            concurrency=setting.clients,
            num_requests=3 * setting.clients,
            isl=setting.isl,
            osl=setting.osl,
        )
        row = serve_model(setting.served(setting.micro_batches), cluster, traffic).row()
        rate = float(str(row["output_tokens_per_s_per_device"]))
        return rate * (per_node if metric == "tokens_per_s_per_node" else 1)
    seconds = setting.step_s(cluster, setting.micro_batches)
    if metric == "tpot_ms":
        return 1e3 * seconds
    if setting.gain:
        return setting.step_s(cluster, 1) / seconds
    tokens = setting.prefills * setting.new_tokens + setting.sequences
    rate = tokens / layout.tp / seconds
    return rate * (per_node if metric == "tokens_per_s_per_node" else 1)
