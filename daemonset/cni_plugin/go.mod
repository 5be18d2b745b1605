module ambit.example/cni

go 1.21
