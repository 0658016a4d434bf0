//! Labelled images from disk: IDX files, class folders, CIFAR-10's binary format.
