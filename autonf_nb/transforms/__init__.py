"""The families of transforms, one module each: all are nflows `Transform`s."""
