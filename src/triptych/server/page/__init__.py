"""The page of `triptych app`: gradio on the server of `triptych serve`. Only this package imports gradio."""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
