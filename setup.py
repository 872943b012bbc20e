from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (HERE / "miwv_trainer" / "version.py").read_text(encoding="utf-8").splitlines()
    if line.startswith("__version__")
)

EXTRAS = {
    "embed": ["sentence-transformers>=6.2"],
    "faiss": ["faiss-cpu>=1.12"],
    "trl": ["trl>=1.16"],
    "peft": ["peft>=0.21"],
    "deepspeed": ["deepspeed>=0.19.8"],
    "gguf": ["gguf>=0.19"],
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
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["miwv_trainer", "miwv_trainer.*"]),
    package_data={"miwv_trainer": ["py.typed", "report/templates/*"]},
    install_requires=[
        "torch>=2.13",
        "transformers>=5.18,<6",
        "accelerate>=1.15",
        "datasets>=5.2",
        "evaluate>=0.4.6",
        "filelock>=3.24.2",
        "huggingface_hub>=1.33",
        "jinja2>=3.1",
        "numpy>=2.1.3",
        "psutil>=6.0",
        "pyarrow>=24",
        "safetensors>=0.8",
        "scikit-learn>=1.7",
        "scipy>=1.15",
        "tqdm>=4.66.3",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["miwv=miwv_trainer.cli.main:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Typing :: Typed",
    ],
)
