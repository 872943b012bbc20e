from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (HERE / "miwv_trainer" / "version.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("__version__")
)

EXTRAS = {
    "embed": ["sentence-transformers>=5.0"],
    "faiss": ["faiss-cpu>=1.12"],
    "trl": ["trl>=0.24"],
    "peft": ["peft>=0.17"],
    "deepspeed": ["deepspeed>=0.18"],
    "gguf": ["gguf>=0.17"],
    "metrics": ["rouge-score>=0.1.2"],
    "docs": ["mkdocs-material>=9.6"],
    "report": ["matplotlib>=3.10"],
    "test": [
        "ipykernel>=6.29",
        "nbclient>=0.10",
        "pytest>=9",
        "pytest-timeout>=2.4",
        "pytest-xdist>=3.6",
        "schedulefree>=1.4",
        "ruff>=0.17",
        "mypy>=2.4",
        "pre-commit>=4",
    ],
}

setup(
    name="miwv-trainer",
    version=VERSION,
    description="Lets the Hugging Face Trainer choose its training data with the model it trains (MIWV).",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["miwv_trainer", "miwv_trainer.*"]),
    package_data={"miwv_trainer": ["py.typed", "report/templates/*"]},
    install_requires=[
        "torch>=2.6",
        "transformers>=4.57.1,<6",
        "accelerate>=1.10",
        "datasets>=3.6",
        "evaluate>=0.4.1",
        "filelock>=3.13.1",
        "huggingface_hub>=0.36",
        "jinja2>=3.1",
        "numpy>=1.26.4",
        "packaging>=24.0",
        "psutil>=5.9",
        "pyarrow>=15",
        "safetensors>=0.4.3",
        "scikit-learn>=1.3.2",
        "scipy>=1.11.4",
        "tqdm>=4.66.3",
        "typing_extensions>=4.12",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["miwv=miwv_trainer.cli.main:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Typing :: Typed",
    ],
)
