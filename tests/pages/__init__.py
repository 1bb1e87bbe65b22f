"""The documentation as a reader uses it: what stands on its pages, and someone who pastes it.

A page says in comments what it needs, which no reader sees:

    <!-- materials: my_images, street.jpg -->    anywhere: what lies ready, by the names of ``materials.MATERIALS``
    <!-- slow -->                                right above a block: left to ``make slow``, which pastes the whole page
"""
