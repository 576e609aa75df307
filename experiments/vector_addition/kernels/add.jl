# Vector addition, c = a + b, in Julia: julia --threads THREADS add.jl ELEMENTS REPEATS TYPE prints one line of JSON.

const WARM_UP = 3

"""The places that a thread works on: the same in every pass, so that memory is near who uses it."""
function part(n, thread, threads)
    return (n * (thread - 1) ÷ threads + 1):(n * thread ÷ threads)
end

function touch!(a, b, c, places)
    @inbounds for i in places
        a[i] = (i - 1) % 1000
        b[i] = (i - 1) % 777
        c[i] = 0
    end
end

function add!(a, b, c, places)
    @inbounds @simd for i in places
        c[i] = a[i] + b[i]
    end
end

"""Let every thread work on its part; one thread works at once, without the cost of threads."""
function everywhere!(work!, a, b, c)
    threads = Threads.nthreads()
    if threads == 1
        work!(a, b, c, eachindex(c))
    else
        Threads.@threads :static for thread in 1:threads
            work!(a, b, c, part(length(c), thread, threads))
        end
    end
end

"""Allocate and touch; returns the three vectors and the seconds."""
function allocated(type, n)
    began = time_ns()
    a, b, c = (Vector{type}(undef, n) for _ in 1:3)
    everywhere!(touch!, a, b, c)
    return a, b, c, (time_ns() - began) / 1.0e9
end

function main(n, repeats, type)
    allocated(type, 1) # compiles it
    a, b, c, touched = allocated(type, n)
    times = Float64[]
    for i in (1 - WARM_UP):repeats
        began = time_ns()
        everywhere!(add!, a, b, c)
        spent = (time_ns() - began) / 1.0e9
        i > 0 && push!(times, spent)
    end
    total = sum(Float64, c)
    weighted = sum(Float64(c[i]) * ((i - 1) % 97 + 1) for i in eachindex(c))
    print(
        "{\"first_touch_s\": $touched, \"times_s\": [$(join(times, ", "))], \"transfer_s\": [], ",
    )
    println("\"workers\": $(Threads.nthreads()), \"sum\": $total, \"weighted\": $weighted}")
end

main(parse(Int, ARGS[1]), parse(Int, ARGS[2]), ARGS[3] == "float32" ? Float32 : Float64)
