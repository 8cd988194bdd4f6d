"""Metadata, extras and commands of the distribution ``ptychopinn``."""

from setuptools import find_packages, setup

TORCH = ["torch>=2.6", "lightning>=2.5", "mlflow>=2.20", "tensordict>=0.7", "tensorboard>=2.18"]
TENSORFLOW = ["tensorflow>=2.19", "keras>=3.8", "mlflow>=2.20"]
TEST = ["pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "ruff>=0.9"]
# What the client needs beside itself. It asks for the whole of pydantic-ai and runs with this part of it, so
# it is installed without its own requirements: see the Makefile.
COMPAT = [
    "pydantic-ai-slim[anthropic,google,mcp,openai]>=1,<3",
    "colorcet>=3.1",
    "h5py>=3",
    "hdf5plugin>=5",
    "httpx>=0.28",
    "mlflow-skinny>=2.20",
    "psutil>=6",
    "pydantic>=2.10",
    "scikit-learn>=1.5",
    "tifffile>=2024.7",
    "watchdog>=5",
]

setup(
    name="ptychopinn",
    version="0.1.0",
    description="Amplitude and phase pictures from scanning diffraction data, by physics-informed networks",
    license="BSD-3-Clause",
    python_requires=">=3.10",
    packages=find_packages(include=["ptycho", "ptycho.*", "ptycho_torch", "ptycho_torch.*"]),
    package_data={"ptycho": ["weights/*.h5.zip"]},
    install_requires=[
        "numpy>=1.26",
        "scipy>=1.12",
        "h5py>=3.10",
        "hdf5plugin>=4.4",
        "matplotlib>=3.8",
        "scikit-image>=0.22",
        "pyyaml>=6",
        "tqdm>=4.66",
    ],
    extras_require={
        "torch": TORCH,
        "tensorflow": TENSORFLOW,
        "all": sorted({*TORCH, *TENSORFLOW}),
        "test": TEST,
        "compat": COMPAT,
    },
    entry_points={
        "console_scripts": [
            "ptycho_train=ptycho.cli.train_command:main",
            "ptycho_inference=ptycho.cli.inference_command:main",
            "ptycho_evaluate=ptycho.cli.evaluate_command:main",
            "ptycho_simulate=ptycho.cli.simulate_command:main",
        ]
    },
)
