"""One denoiser in each of the peers, on the CPU, in f32.

An engine is a function (directory, batch, threads, compiled) that yields the variants of its column:
a name and `bind`, which takes the input arrays and returns the call to time, itself without
arguments. A variant is loaded when it is asked for. `compiled` asks for compiled PyTorch too.
"""

import numpy as np


def pytorch(directory, batch, threads, compiled):
    import torch

    from song_unet import load_extracted

    torch.set_num_threads(threads)
    # The default; but a default may become bf16 on a processor that has it.
    torch.set_float32_matmul_precision("highest")
    torch.backends.mkldnn.fp32_precision = "ieee"

    def binder(net, layout):
        def bind(arrays):
            x, *rest = map(torch.from_numpy, arrays)
            x = x.contiguous(memory_format=layout)

            def call():
                with torch.inference_mode():
                    return net(x, *rest).numpy()

            return call

        return bind

    yield "eager", binder(load_extracted(directory), torch.contiguous_format)
    layout = torch.channels_last
    yield "eager, channels last", binder(load_extracted(directory).to(memory_format=layout), layout)
    if compiled:
        package = directory / f"batch{batch}-threads{threads}.pt2"
        yield "compiled", binder(torch._inductor.aoti_load_package(str(package)), layout)


def onnxruntime(directory, batch, threads, compiled):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    path = directory / f"batch{batch}-opset18.onnx"
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def bind(arrays):
        binding = session.io_binding()
        for slot, array in zip(session.get_inputs(), arrays, strict=True):
            binding.bind_cpu_input(slot.name, array)
        (slot,) = session.get_outputs()
        out = np.empty(slot.shape, np.float32)
        binding.bind_output(slot.name, "cpu", 0, np.float32, out.shape, out.ctypes.data)

        def call():
            session.run_with_iobinding(binding)
            return out

        return call

    yield "opset 18", bind


def openvino(directory, batch, threads, compiled):
    import openvino as ov

    core = ov.Core()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "EXECUTION_MODE_HINT": "ACCURACY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
    }
    for opset in (18, 23):
        model = core.compile_model(str(directory / f"batch{batch}-opset{opset}.onnx"), "CPU", options)
        precision = model.get_property("INFERENCE_PRECISION_HINT")
        if precision != ov.Type.f32:
            raise SystemExit(f"OpenVINO computes in {precision}, not in f32")
        request = model.create_infer_request()

        def bind(arrays):
            for index, array in enumerate(arrays):
                request.set_input_tensor(index, ov.Tensor(array, shared_memory=True))

            def call():
                request.infer()
                return request.get_output_tensor(0).data

            return call

        yield f"opset {opset}", bind


ENGINES = {engine.__name__: engine for engine in (pytorch, onnxruntime, openvino)}
