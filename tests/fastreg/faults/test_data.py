"""Data that Python makes, in threads and in processes, while a model with penalties trains on it."""

DATA = """
    import json, multiprocessing, os
    import numpy as np

    x, y = np.random.default_rng(0).normal(size=(64, 8)).astype("f4"), np.ones((64, 1), "f4")

    def batch(i):
        return x[8 * i : 8 * i + 8], y[8 * i : 8 * i + 8]

    def work(i):
        # In a process of a pool: the kernels, without TensorFlow.
        import fastreg_kernels
        return fastreg_kernels.forward(np.full(100_000, float(i))).tolist()

    def main():
        import keras, tensorflow as tf
        import fastreg

        class Batches(keras.utils.PyDataset):
            def __len__(self):
                return 8
            def __getitem__(self, i):
                return batch(i)

        def generator():
            yield from map(batch, range(8))

        signature = (tf.TensorSpec((None, 8)), tf.TensorSpec((None, 1)))
        sources = {
            "arrays": lambda: (x, y),
            "generator": lambda: (generator(),),
            "from_generator": lambda: (tf.data.Dataset.from_generator(generator, output_signature=signature),),
            "threads": lambda: (Batches(workers=2),),
            "processes": lambda: (Batches(workers=2, use_multiprocessing=True, max_queue_size=4),),
        }

        def trained(bridge, source):
            fastreg.set_bridge(bridge)
            fastreg.set_crossover(0)
            keras.utils.set_random_seed(1)
            penalty = fastreg.L1L2(1e-3, 1e-2)
            layers = [keras.layers.Dense(16, kernel_regularizer=penalty, activity_regularizer=penalty)]
            model = keras.Sequential([keras.Input((8,)), *layers, keras.layers.Dense(1)])
            model.compile("sgd", "mse", jit_compile=False)
            for _ in range(2):
                model.fit(*sources[source](), batch_size=8 if source == "arrays" else None, shuffle=False, verbose=0)
            return model.get_weights()

        expected = trained("tensorflow", "arrays")
        for bridge in ("native", "py_function"):
            for source in sources:
                for ours, theirs in zip(trained(bridge, source), expected):
                    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
        for method in multiprocessing.get_all_start_methods():
            if method == "forkserver":
                continue
            with multiprocessing.get_context(method).Pool(2) as pool:
                results = pool.map_async(work, range(6))
                trained("native", "from_generator")
                assert results.get(60) == [[i * 1e5, i * i * 1e5] for i in range(6)]
                pool.close()
                pool.join()
        print("done")

    if __name__ == "__main__":
        main()
"""


def test_sources_of_data(run_script):
    assert run_script(DATA, fresh=True).endswith("done\n")
