"""TensorFlow's ParameterServerStrategy: a coordinator, a parameter server, and two workers of one thread each.

It knows no synchronous training: a worker's gradient is applied when it comes, whatever the other does. A step is taken to be as
many updates as there are workers, so that it stands for as many samples as elsewhere.
"""

import argparse
import multiprocessing
import os
import socket
from itertools import pairwise
from typing import Any

from benchmarks.program import Rate, run, timed
from benchmarks.workloads import SAMPLES, WORKERS, Workload

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}

# The coordinator waits for the workers now and then, so that calls do not pile up.
_WAIT_EVERY = 10

Cluster = dict[str, list[str]]


def serve(cluster: Cluster, job: str, index: int) -> None:
    """A worker's or the parameter server's process."""
    import tensorflow as tf

    # Ops that wait for others need threads of their own; those that compute share one.
    config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=WORKERS + 2)
    tf.distribute.Server(tf.train.ClusterSpec(cluster), job_name=job, task_index=index, protocol="grpc", config=config).join()


def measure(workload: Workload, options: argparse.Namespace) -> Rate:
    """Steps of both workers together."""
    context = multiprocessing.get_context("spawn")
    cluster = {"worker": [_address() for _ in range(WORKERS)], "ps": [_address()]}
    for job, addresses in cluster.items():
        for index in range(len(addresses)):
            context.Process(target=serve, args=(cluster, job, index), daemon=True).start()
    return _train(workload, cluster, options.seconds)


def _address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


def _train(workload: Workload, cluster: Cluster, seconds: float) -> Rate:
    import tensorflow as tf

    spec = tf.train.ClusterSpec(cluster)
    strategy = tf.distribute.ParameterServerStrategy(tf.distribute.cluster_resolver.SimpleClusterResolver(spec, rpc_layer="grpc"))
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    with strategy.scope():
        layers = [_layer(*shape) for shape in pairwise(workload.widths)]
        variables = [variable for layer in layers for variable in layer]
        slots = [
            (tf.Variable(tf.zeros_like(v)), tf.Variable(tf.zeros_like(v))) for v in variables if workload.optimizer == "adam"
        ]

    def update(place: int, gradient: Any) -> None:
        handle, rate = variables[place].handle, workload.learning_rate
        if workload.optimizer == "sgd":
            tf.raw_ops.ResourceApplyGradientDescent(var=handle, alpha=rate, delta=gradient)
        else:
            mean, square = slots[place]
            tf.raw_ops.ResourceApplyAdam(
                var=handle, m=mean.handle, v=square.handle, beta1_power=0.9, beta2_power=0.999, lr=rate, beta1=0.9, beta2=0.999,
                epsilon=1e-8, grad=gradient,
            )  # fmt: skip

    def step(iterator: Any) -> None:
        x, y = next(iterator)
        with tf.GradientTape() as tape:
            for number, (weight, bias) in enumerate(layers):
                x = tf.matmul(tf.nn.relu(x) if number else x, weight) + bias
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, x))
        for place, gradient in enumerate(tape.gradient(loss, variables)):
            update(place, gradient)

    compiled = tf.function(step)

    def dataset() -> Any:
        x = tf.random.stateless_normal((SAMPLES // WORKERS, workload.widths[0]), (0, 0))
        y = tf.random.stateless_uniform((SAMPLES // WORKERS,), (0, 0), 0, workload.widths[-1], tf.int32)
        whole = tf.data.Dataset.from_tensor_slices((x, y)).batch(workload.samples, drop_remainder=True)
        return whole.cache().repeat().prefetch(2)

    iterator = iter(coordinator.create_per_worker_dataset(dataset))

    def steps() -> None:
        for _ in range(_WAIT_EVERY * WORKERS):
            coordinator.schedule(compiled, args=(iterator,))
        coordinator.join()

    return timed(steps, seconds, _WAIT_EVERY)


def _layer(inputs: int, outputs: int) -> tuple[Any, Any]:
    import tensorflow as tf

    scale = (2 / inputs) ** 0.5
    return tf.Variable(tf.random.stateless_normal((inputs, outputs), (0, 0)) * scale), tf.Variable(tf.zeros(outputs))


if __name__ == "__main__":
    run(measure)
