! Vector addition, c = a + b, in Fortran; threads where compiled with OpenMP. KIND is that of the elements.

subroutine work(a, b, c, n) bind(C)
    use, intrinsic :: iso_c_binding, only: c_double, c_float, c_long
    implicit none
    integer(c_long), value :: n
    real(KIND), intent(in) :: a(n), b(n)
    real(KIND), intent(out) :: c(n)
    integer(c_long) :: i

    !$omp parallel do schedule(static)
    do i = 1, n
        c(i) = a(i) + b(i)
    end do
end subroutine work
